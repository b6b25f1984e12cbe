"""Programs for those who change the project: generated documentation and checks of the vocabulary."""
