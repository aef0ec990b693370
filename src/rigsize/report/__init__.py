"""How an answer reaches a reader: text for people, JSON documents for programs."""
