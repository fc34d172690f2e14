"""The one loop, and what it needs. No family is named here."""
