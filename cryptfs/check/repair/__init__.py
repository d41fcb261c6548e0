"""Repairs: one module for each kind of damage, all by the interface of `workshop`."""
