"""The tests, in the folders of what they test; what several of these share is here."""
