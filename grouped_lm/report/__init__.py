"""Tables, figures and the leaderboard."""
