"""Files that are whole or not there: written atomically, hashed, locked, downloaded."""
