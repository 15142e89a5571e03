"""The paper's claims, the steps that bring figures for them, verdicts from those figures, and the page that says so."""
