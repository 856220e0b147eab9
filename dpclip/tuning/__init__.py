"""What a rule's noise comes to before anything is trained."""
