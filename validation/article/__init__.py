"""The article's claims, each with our figure: `python -m validation.article`."""
