"""What a model still understands: loss along a text, recall, chats, attention maps, and a million checked steps."""
