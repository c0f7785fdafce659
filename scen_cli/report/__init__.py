"""Reports: one page for a project, and the pictures in it and in the studies. No torch here."""
