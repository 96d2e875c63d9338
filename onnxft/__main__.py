"""`python -m onnxft`."""

from onnxft.cli.main import main

main()
