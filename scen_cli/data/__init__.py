"""Edit records and the field's dataset forms."""
