"""The stages of a round: from what each is made, what it needs, what it does."""
