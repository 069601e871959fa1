"""Questions about the memory itself: what it recalls, how far it reaches, what each part of it is worth."""
