"""Files and Hub datasets as tables of rows, from which prompts are picked."""
