"""What happens to models and runners: seen, logged, and remembered for those who watch."""
