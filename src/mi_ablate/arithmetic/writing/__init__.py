"""What writing, moving, removing or filtering a number's representation does to the answers."""
