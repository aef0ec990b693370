"""The plan: on which machine, how spread and in which batches a run is cheapest or fastest."""
