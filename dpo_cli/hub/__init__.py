"""The Hugging Face Hub: download of models and data sets, and the files of a data set."""
