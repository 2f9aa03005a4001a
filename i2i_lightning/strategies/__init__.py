"""How a run spreads over devices, processes and number formats: plugins for Lightning's trainer."""
