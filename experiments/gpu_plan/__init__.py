"""What a run takes on a card, read from the program that XLA compiles for it without having one."""
