"""What trains and what is frozen, and what that costs."""
