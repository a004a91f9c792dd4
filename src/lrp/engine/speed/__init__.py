"""What only makes the explanation program faster: the same relevance with less arithmetic or memory."""
