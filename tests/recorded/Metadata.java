import java.sql.*;
/** What tools ask of java.sql.DatabaseMetaData. */
public class Metadata {
  public static void main(String[] a) throws Exception {
    try (Connection c = DriverManager.getConnection(a[0], a[1], a[2])) {
      DatabaseMetaData m = c.getMetaData();
      m.getSchemas().close(); m.getCatalogs().close(); m.getTableTypes().close();
      m.getTables(null, "public", "%", new String[]{"TABLE","VIEW"}).close();
      m.getColumns(null, "public", "orders", "%").close();
      m.getPrimaryKeys(null, "public", "orders").close();
      m.getIndexInfo(null, "public", "orders", false, false).close();
      m.getImportedKeys(null, "public", "orders").close();
      m.getExportedKeys(null, "public", "orders").close();
      m.getTypeInfo().close(); m.getProcedures(null, "public", "%").close(); m.getFunctions(null, "public", "%").close();
      m.getTablePrivileges(null, "public", "orders").close(); m.getColumnPrivileges(null, "public", "orders", "%").close();
      m.getBestRowIdentifier(null, "public", "orders", 0, true).close(); m.getVersionColumns(null, "public", "orders").close();
      m.getUDTs(null, "public", "%", null).close();
      try (PreparedStatement p = c.prepareStatement("SELECT id, status FROM orders WHERE id = ?")) { p.setInt(1, 3); ResultSet r = p.executeQuery(); ResultSetMetaData rm = r.getMetaData(); rm.isNullable(1); rm.isAutoIncrement(1); rm.getTableName(1); r.next(); }
      c.setReadOnly(true); c.setAutoCommit(false); c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE); c.commit();
      c.setSchema("public"); c.getSchema(); c.isValid(2);
    }
  }
}
