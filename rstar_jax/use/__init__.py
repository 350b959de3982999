"""What a person does with a result: ask it, serve it, chat with it."""
