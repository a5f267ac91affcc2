"""Cache the outputs of frozen modules. `memo` runs steps, `step` is one step, and the other files are their parts."""
