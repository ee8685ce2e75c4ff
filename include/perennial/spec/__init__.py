"""`model.yaml` as typed objects, read and checked; compute profiles and the pods that they describe."""
