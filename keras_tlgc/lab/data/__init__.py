"""Images to train on: data sets, folders, and what is made here."""
