"""Networks that remember: frames in, answers out, a state carried from call to call."""
