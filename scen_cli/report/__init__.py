"""Reports: an HTML page or Markdown about a project, and figures for reports and studies. Does not import torch."""
