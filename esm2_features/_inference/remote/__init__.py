"""Vectors from a server: `backend` asks, `connection` sends, `responses` reads."""
