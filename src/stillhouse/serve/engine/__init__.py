"""Which pictures move next, and what that costs: pure but for the device, and the same on a virtual clock."""
