"""Who may do what until when: grants, approvals of held statements, and the sessions that live by them."""
