"""Writing instances: the plan, the flow, parsing and voting."""
