"""Advice on a head for a text: figures of the text, costs of heads, and short trainings that rank them by loss."""
