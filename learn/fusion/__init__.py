"""Weight Sharing Attention, its rivals and ablations, behind one signature."""
