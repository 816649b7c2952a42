"""What runs inside the rig's guest: its init script and the agent, both copied into the image."""
