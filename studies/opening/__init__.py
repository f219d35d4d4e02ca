"""How should segments be opened during tuning, and what do opened models do with the keys ahead: a study of arms."""
