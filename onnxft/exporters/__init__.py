"""From a source model to the forward graphs, with names kept and numbers compared; torch only here."""
