"""The soak: hours of mixed load with faults and kills, every byte checked against a model."""
