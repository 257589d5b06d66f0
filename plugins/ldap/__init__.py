"""A directory: users who are not in the ACL file, and the rights of their groups."""
