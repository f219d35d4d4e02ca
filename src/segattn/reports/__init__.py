"""Pages and pictures: self-contained HTML from results, drawn once, readable on light and dark grounds."""
