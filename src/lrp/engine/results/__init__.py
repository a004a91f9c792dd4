"""What an explainer returns, and how it is displayed: relevance, the account, health, the table of rules."""
