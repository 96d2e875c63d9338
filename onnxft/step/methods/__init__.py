"""Fine-tuning methods: which parameters are trained, and which are added to the model for it."""
