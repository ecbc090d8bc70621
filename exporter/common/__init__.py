"""What every package may use: errors, files, text, rates, the Hub."""
