"""How a computation is divided over the devices of a mesh."""
