"""What people see: text from outside is shown and never obeyed, and one file prints."""
