"""How long before a lane is predicted free its next action is sent."""
