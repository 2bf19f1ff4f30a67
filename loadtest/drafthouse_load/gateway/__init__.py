"""What the OpenAI gateway costs, and whether it loses anything."""
