"""When something happens: moments, plateaus, convergence, the tasks of a batch. No model, no Lightning."""
