"""The ACL file: users, and what they may see and say."""
