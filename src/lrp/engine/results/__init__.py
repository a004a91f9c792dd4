"""What an explainer returns, and how it shows itself: relevance, the account, health, the table of rules."""
